"""What the tests share; a module for each kind of help."""
