"""Other protocols of the same engine. Each is a translation: its body → a request of ours, deltas → its JSON."""
