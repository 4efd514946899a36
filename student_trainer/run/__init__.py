"""What a run is on disk: its settings, its folder, and the files in it."""
