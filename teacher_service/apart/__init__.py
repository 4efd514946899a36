"""Orders that may end their worker, labelled apart from it in a child process."""
