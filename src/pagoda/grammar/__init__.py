"""What an answer may look like: JSON schemas, regular expressions, choices and grammars, compiled to token masks."""
