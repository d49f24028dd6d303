"""What this machine has and can do at most, and a table of devices that it can be compared with."""
