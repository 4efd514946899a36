"""A student as the next generations of a teacher: published by the run that learns it, compared by its replays."""
