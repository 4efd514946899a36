"""What an evaluation measures: one small class for each metric, fed batch by batch."""
