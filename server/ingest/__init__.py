"""Text of any size on its way into a history."""
