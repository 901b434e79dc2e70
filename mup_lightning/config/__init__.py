"""The configuration: dataclasses with their bounds, and how files and options become one."""
