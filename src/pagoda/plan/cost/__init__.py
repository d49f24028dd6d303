"""What a step costs: its memory, its work, and the time that takes by the roofline."""
