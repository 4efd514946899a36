"""Every error that Distillog raises on purpose.

DistillogError                  the CLI prints it as one line and exits with `exit_code`, no traceback
├── ConfigError                 a setting, a run file or an argument is wrong
│   ├── NotAdmitted             the cluster does not let this client in
│   └── NotAuthorized           the cluster does not grant this client a right that it needs
├── EncodeError                 a value does not fit its codec or record
├── DecodeError                 bytes that are not what their address says they should be
│   └── NeedsNewer              a record that only a newer Distillog can read
│       └── UnknownSchema       a record of a schema that this program does not know
├── BrokerUnavailable           no answer from Kafka within the deadline
├── RecordTooLarge              a record is over the limit of the topic
├── StreamNotFound              no stream, teacher or run of that name
├── StreamConflict              a stream, teacher or run of that name exists and differs
├── StreamChanged               the stream was deleted, or deleted and made again, under a running process
├── ManifestMismatch            local data, views or model differ from what the manifest pins
├── TeacherRejected             an ONNX file that cannot serve as this teacher
├── SequenceGap                 a sequence that is proven missing from a log
├── PositionOutOfRange          a position is not in its log (any more)
├── LogTrimmed                  records below a cursor were removed by retention
├── DataUnavailable             the dataset cannot be read now (I/O), after retries
├── BadSamples                  too many samples of the dataset cannot be decoded
├── DeliveryFailed              Kafka did not acknowledge a record in time
├── WorkerHung                  loading, inference or publishing exceeded its deadline
├── ModelFailed                 a model that was well raised on an order, twice
├── ChildLost                   the process that labels a suspicious order ended, and not by the fault of a sample
├── LoaderLost                  a process that reads samples ended, or gave no answer
├── FleetFailed                 a fleet's workers cannot work
├── CheckpointError             a checkpoint is missing, damaged, or of another run or student
├── CannotWrite                 a file cannot be written: no room, no right to, or one is there
├── RunRemoved                  the folder of a run was removed, moved or replaced under the running process
├── NotFinite                   NaN or infinity in a loss, a gradient, the weights or a student's outputs
├── RunLocked                   another process trains in this run folder
├── PeerLost                    another process of the same run is gone, or cannot go on
├── Starved                     no label came for `starve_timeout`; exit code 3
└── LabelsDiffer                stored labels are not what the teacher gives here; exit code 4
"""

from __future__ import annotations

from typing import ClassVar


class DistillogError(Exception):
    """Base of all errors below; its text is one line that says what, where and what to do."""

    exit_code: ClassVar[int] = 1
    passing: ClassVar[bool] = False
    """Whether it may come right by itself, so that whoever supervises the process starts another."""


class ConfigError(DistillogError):
    """A setting, a run file or an argument is wrong."""


class NotAdmitted(ConfigError):
    """The cluster does not let this client in; asking again cannot help."""


class NotAuthorized(ConfigError):
    """The cluster does not grant this client a right that it needs; asking again cannot help."""


class EncodeError(DistillogError):
    """A value does not fit its codec or record."""


class DecodeError(DistillogError):
    """Bytes that are not what their address says they should be.

    Keeps the bytes, so that a dead letter can carry them.
    """

    def __init__(self, address: str, reason: str, raw: bytes = b"") -> None:
        super().__init__(f"{address}: {reason}")
        self.address = address
        self.reason = reason
        self.raw = raw


class NeedsNewer(DecodeError):
    """A record that only a newer Distillog can read."""


class UnknownSchema(NeedsNewer):
    """A record of a schema that this program does not know: a newer Distillog wrote it, or somebody else."""

    def __init__(self, address: str, fingerprint: str, expected: str, raw: bytes) -> None:
        reason = f"unknown schema {fingerprint}, written by a newer or a foreign program; expected a {expected}"
        super().__init__(address, reason, raw)
        self.fingerprint = fingerprint


class BrokerUnavailable(DistillogError):
    """No answer from Kafka within the deadline."""

    passing: ClassVar[bool] = True


class RecordTooLarge(DistillogError):
    """A record is over the limit of the topic."""


class StreamNotFound(DistillogError):
    """No stream, teacher or run of that name."""


class StreamConflict(DistillogError):
    """A stream, teacher or run of that name exists and differs."""


class StreamChanged(DistillogError):
    """The stream was deleted, or deleted and made again, under a running process."""


class ManifestMismatch(DistillogError):
    """Local data, views or model differ from what the manifest pins."""


class TeacherRejected(DistillogError):
    """An ONNX file that cannot serve as this teacher."""


class SequenceGap(DistillogError):
    """A sequence that is proven missing from a log."""


class PositionOutOfRange(DistillogError):
    """A position, the offset to read on from, is not in its log (any more)."""


class LogTrimmed(DistillogError):
    """Records below a cursor were removed by retention."""


class DataUnavailable(DistillogError):
    """The dataset cannot be read now (I/O), after retries."""

    passing: ClassVar[bool] = True


class BadSamples(DistillogError):
    """Too many samples of the dataset cannot be decoded."""


class DeliveryFailed(DistillogError):
    """Kafka did not acknowledge a record in time."""

    passing: ClassVar[bool] = True


class WorkerHung(DistillogError):
    """Loading, inference or publishing exceeded its deadline."""

    passing: ClassVar[bool] = True


class LoaderLost(DistillogError):
    """A process that reads and views samples ended, or gave no answer."""


class FleetFailed(DistillogError):
    """A fleet's workers cannot work."""


class ModelFailed(DistillogError):
    """A model that had passed its checks raised on an order, twice: a device, memory, or its code."""


class ChildLost(DistillogError):
    """The child process in which a worker labels a suspicious order ended, and not by the fault of a sample."""


class CheckpointError(DistillogError):
    """A checkpoint is missing, damaged, or of another run or student."""


class CannotWrite(DistillogError):
    """A file cannot be written: no room, no right to, or one is there that is not to be overwritten."""


class RunRemoved(DistillogError):
    """The folder of a run was removed, moved or replaced under the running process."""


class NotFinite(DistillogError):
    """NaN or infinity in a loss, a gradient, the weights or a student's outputs."""


class RunLocked(DistillogError):
    """Another process trains in this run folder."""


class PeerLost(DistillogError):
    """Another process of the same run is gone, or cannot go on."""

    passing: ClassVar[bool] = True


class Starved(DistillogError):
    """No label came for `starve_timeout`."""

    exit_code = 3


class LabelsDiffer(DistillogError):
    """Stored labels are not what the teacher gives here, by more than the limit."""

    exit_code = 4
