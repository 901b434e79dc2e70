"""The command line: thin layers over functions that can be called from Python."""
