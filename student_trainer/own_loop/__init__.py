"""Labels in a training loop of one's own: batches to iterate over, without any training in them."""
