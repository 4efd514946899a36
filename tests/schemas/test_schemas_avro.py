from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from schemas_examples import examples

from schemas.avro import REGISTRY, Registry
from schemas.errors import ConfigError, DecodeError, EncodeError, UnknownSchema
from schemas.lifts import LIFTS, Lift

ADDRESS = "digits.work-orders/0@0"
NAMES = (
    "dead_letter",
    "generation",
    "head_chunk",
    "manifest",
    "publisher",
    "soft_targets",
    "teacher",
    "work_order",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the package's schemas, to evolve."""
    return Path(shutil.copytree(REGISTRY.folder, tmp_path / "avsc"))


def edit(folder: Path, name: str, version: int, change: Any) -> None:
    """Write another version of schema `name`, changed by `change(schema)`."""
    schema = json.loads((folder / f"{name}.1.avsc").read_text())
    change(schema)
    (folder / f"{name}.{version}.avsc").write_text(json.dumps(schema))


def fields_and_types(schema: Any) -> list[Any]:
    if isinstance(schema, list):
        return [found for one in schema for found in fields_and_types(one)]
    if not isinstance(schema, dict):
        return []
    found = fields_and_types(schema.get("type")) + fields_and_types(schema.get("items"))
    for field in schema.get("fields", []):
        found += [field, *fields_and_types(field["type"])]
    return found


def test_the_fingerprint_is_that_of_the_avro_specification(tmp_path: Path) -> None:
    # The published CRC-64-AVRO of "int" is 7275d51a3f395c8f; single-object encoding writes it little-endian.
    (tmp_path / "number.1.avsc").write_text('"int"')
    assert Registry(tmp_path).fingerprint("number").hex() == "8f5c393f1ad57572"


def test_a_record_begins_with_the_marker_and_the_fingerprint() -> None:
    raw = examples()["work_order"].encode()
    assert raw[:10] == b"\xc3\x01" + REGISTRY.fingerprint("work_order")


def test_the_manifest_can_pin_the_newest_of_every_name(folder: Path) -> None:
    assert tuple(REGISTRY.fingerprints()) == NAMES
    edit(folder, "work_order", 10, lambda schema: schema["fields"].append(field("note", "string", "")))
    evolved = Registry(folder)
    assert evolved.fingerprints()["work_order"] == evolved.fingerprint("work_order", 10).hex()
    assert evolved.fingerprint("work_order", 1) == REGISTRY.fingerprint("work_order")


@pytest.mark.parametrize("file", sorted(path.name for path in REGISTRY.folder.glob("*.avsc")))
def test_every_field_has_a_doc_string(file: str) -> None:
    schema = json.loads((REGISTRY.folder / file).read_text())
    assert schema["doc"]
    for one in fields_and_types(schema):
        assert one["doc"]


def field(name: str, kind: str, default: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "default": default, "doc": "Added later."}


def test_an_older_version_is_read_with_the_default_of_the_field_it_lacks(folder: Path) -> None:
    old = examples()["work_order"].encode()
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append(field("priority", "long", 7)))
    registry = Registry(folder)
    datum = registry.decode("work_order", old, ADDRESS)
    assert datum["priority"] == 7
    assert datum == REGISTRY.decode("work_order", old, ADDRESS) | {"priority": 7}
    new = registry.encode("work_order", datum | {"priority": 9})
    assert registry.decode("work_order", new, ADDRESS)["priority"] == 9


def test_an_older_version_whose_extra_field_was_dropped_is_read_without_it(folder: Path) -> None:
    edit(folder, "work_order", 0, lambda schema: schema["fields"].insert(0, field("host", "string", "")))
    older = Registry(folder)
    only_old = folder.parent / "old"
    only_old.mkdir()
    shutil.copy(folder / "work_order.0.avsc", only_old)
    datum = REGISTRY.decode("work_order", examples()["work_order"].encode(), ADDRESS)
    raw = Registry(only_old).encode("work_order", datum | {"host": "gpu7"})
    assert older.decode("work_order", raw, ADDRESS) == datum


def test_a_nested_column_may_evolve(folder: Path) -> None:
    def add(schema: dict[str, Any]) -> None:
        column = next(one["type"] for one in schema["fields"] if one["name"] == "sample_ids")
        column["fields"].append(field("unit", "string", "none"))

    edit(folder, "soft_targets", 3, add)
    datum = Registry(folder).decode("soft_targets", examples()["soft_targets float16"].encode(), ADDRESS)
    assert datum["sample_ids"]["unit"] == datum["kept_rows"]["unit"] == "none"
    assert datum["outputs"][0]["columns"][0]["unit"] == "none"


def test_a_record_that_needs_no_lift_is_resolved_step_by_step_up_to_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [[field("a", "long", 0)], [field("a", "long", 0), field("b", "long", 5)], [field("c", "long", -1)]]
    schemas = [json.dumps({"type": "record", "name": "sum", "fields": fields}) for fields in versions]
    (tmp_path / "sum.1.avsc").write_text(schemas[0])
    old = Registry(tmp_path)
    raw, pinned = old.encode("sum", {"a": 7}), old.fingerprints()
    for version in (2, 3):
        (tmp_path / f"sum.{version}.avsc").write_text(schemas[version - 1])
    up_and_down = Lift(lambda datum: {"c": datum["a"] + datum["b"]}, lambda datum: {"a": datum["c"] - 5, "b": 5})
    monkeypatch.setitem(LIFTS, ("sum", 2), up_and_down)
    registry = Registry(tmp_path)
    assert registry.decode("sum", raw, ADDRESS) == {"c": 12}
    assert registry.encode("sum", {"c": 12}, pinned) == raw


def test_a_cut_older_record_is_refused(folder: Path) -> None:
    old = examples()["work_order"].encode()
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append(field("priority", "long", 7)))
    registry = Registry(folder)
    for length in range(len(old)):
        with pytest.raises(DecodeError):
            registry.decode("work_order", old[:length], ADDRESS)


def test_a_version_that_cannot_read_the_older_one_refuses_its_records(folder: Path) -> None:
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append({"name": "x", "type": "long", "doc": "x"}))
    with pytest.raises(DecodeError):
        Registry(folder).decode("work_order", examples()["work_order"].encode(), ADDRESS)


def test_a_foreign_fingerprint_is_refused_and_named() -> None:
    raw = bytearray(examples()["work_order"].encode())
    raw[2:10] = b"\x01" * 8
    with pytest.raises(UnknownSchema, match="unknown schema 0101010101010101") as caught:
        REGISTRY.decode("work_order", bytes(raw), ADDRESS)
    assert (caught.value.address, caught.value.fingerprint) == (ADDRESS, "01" * 8)
    assert caught.value.raw == bytes(raw)


def test_a_newer_version_is_foreign_to_an_older_reader(folder: Path) -> None:
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append(field("priority", "long", 7)))
    datum = REGISTRY.decode("work_order", examples()["work_order"].encode(), ADDRESS)
    raw = Registry(folder).encode("work_order", datum | {"priority": 1})
    with pytest.raises(DecodeError, match="newer or a foreign program"):
        REGISTRY.decode("work_order", raw, ADDRESS)


def test_a_stream_that_pins_an_older_version_gets_its_records_in_it(folder: Path) -> None:
    old = examples()["work_order"].encode()
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append(field("priority", "long", 7)))
    registry = Registry(folder)
    datum = registry.decode("work_order", old, ADDRESS)
    assert registry.encode("work_order", datum, REGISTRY.fingerprints()) == old
    assert registry.encode("work_order", datum)[2:10] == registry.fingerprint("work_order", 2)
    assert registry.encode("work_order", datum, {"teacher": "00" * 8}) == registry.encode("work_order", datum)


def test_what_an_older_version_has_no_field_for_is_not_left_out_in_silence(folder: Path) -> None:
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append(field("priority", "long", 7)))
    registry = Registry(folder)
    datum = registry.decode("work_order", examples()["work_order"].encode(), ADDRESS)
    with pytest.raises(EncodeError, match="work_order: version 1, which the stream pins, cannot hold all of it"):
        registry.encode("work_order", datum | {"priority": 9}, REGISTRY.fingerprints())


def test_fingerprints_of_a_newer_program_are_told_by_name(folder: Path) -> None:
    edit(folder, "work_order", 2, lambda schema: schema["fields"].append(field("priority", "long", 7)))
    newer = Registry(folder).fingerprints()
    assert REGISTRY.unknown(newer) == {"work_order": newer["work_order"]}
    assert REGISTRY.unknown(REGISTRY.fingerprints() | {"letter": "ab" * 8}) == {"letter": "ab" * 8}
    assert Registry(folder).unknown(REGISTRY.fingerprints()) == {}
    assert REGISTRY.unknown({"work_order": REGISTRY.fingerprint("teacher").hex()}) != {}
    with pytest.raises(ConfigError, match=f"pins work_order {newer['work_order']}, which this Distillog does not know"):
        REGISTRY.encode("work_order", {}, newer)


@pytest.mark.parametrize("datum", [{}, {"stream_id": 1}, None, [], {"stream_id": "a", "sequence": 2**70}], ids=str)
def test_a_datum_that_does_not_fit_raises_an_encode_error(datum: Any) -> None:
    with pytest.raises(EncodeError, match=r"^work_order: "):
        REGISTRY.encode("work_order", datum)


def test_an_unknown_schema_names_the_nearest() -> None:
    for call in (
        lambda: REGISTRY.encode("work_ordr", {}),
        lambda: REGISTRY.decode("work_ordr", b"", ADDRESS),
        lambda: REGISTRY.fingerprint("work_ordr"),
    ):
        with pytest.raises(ConfigError, match="did you mean 'work_order'"):
            call()
    with pytest.raises(ConfigError, match="no version 99"):
        REGISTRY.fingerprint("work_order", 99)


def test_two_versions_that_a_reader_cannot_tell_apart_are_refused(folder: Path) -> None:
    edit(folder, "work_order", 2, lambda schema: schema.update(doc="Only the words differ."))
    with pytest.raises(ConfigError, match=r"work_order\.2\.avsc"):
        Registry(folder).fingerprints()


def test_a_file_without_a_version_is_refused(folder: Path) -> None:
    (folder / "work_order.avsc").write_text('"int"')
    with pytest.raises(ConfigError, match=r"<name>\.<version>\.avsc"):
        Registry(folder).fingerprints()
