"""What builds the documentation: runs the chapters, pulls in code from the source, makes the reference tables."""
