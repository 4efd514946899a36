"""What moves records: the sequence, data sets and views, Kafka clients, feed, the local broker and the CLI."""
