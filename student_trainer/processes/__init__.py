"""One run on several processes: rank 0 reads the labels and deals them out, all learn, gradients are summed."""
