"""Teachers: ONNX models that label work orders as members of a Kafka consumer group."""
