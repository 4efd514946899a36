"""`close()` of a producer with records under way may stop halfway: a close that ends its sender."""

from __future__ import annotations

from kafka import KafkaProducer
from kafka import errors as kafka_error


def close_producer(producer: KafkaProducer, timeout: float = 0.0) -> None:
    """Stop a producer for good; what is unacknowledged after `timeout` seconds is given up."""
    try:
        producer.close(timeout=timeout)
    except kafka_error.KafkaTimeoutError:
        # With records under way kafka-python's close stops here and leaves its sender running (measured), which would
        # send them later, beside the next producer's.
        producer._sender.force_close()
    # It may be in the middle of a request even where close says nothing.
    producer._sender.join(5.0)
