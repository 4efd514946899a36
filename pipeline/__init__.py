"""What moves records: the sequence, datasets and views, Kafka clients, feed, the local broker and the CLI."""
