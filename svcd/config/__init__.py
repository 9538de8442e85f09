"""The services file: text to Config or problems. Opens no file; queries the machine only through an interface."""
