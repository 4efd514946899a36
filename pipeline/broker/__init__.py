"""A local one-node Kafka for development and tests: Java and the jars come from pip and Maven, checked by hash."""
