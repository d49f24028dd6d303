"""What of a model a plan needs: tensor shapes, where they come from, and their bytes in each weight format."""
