"""Where the orders of a run come from: a stream's log with its teachers' labels, or the dataset alone."""
