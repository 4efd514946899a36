"""A worker's part in sharing out the partitions: what it bids, and when it asks for other shares."""
