"""Types of the native module. Each csrc file that binds something states it here."""
