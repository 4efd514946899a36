"""The seam to Kafka: settings, clients, errors, the log as the project sees it, and every workaround."""
