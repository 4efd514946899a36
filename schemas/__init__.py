"""What Distillog's processes agree on: Avro schemas, records, codecs, names and errors."""
