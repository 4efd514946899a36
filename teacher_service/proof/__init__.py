"""Whether labels that are stored are what the teacher gives: some rows of each order are labelled again."""
