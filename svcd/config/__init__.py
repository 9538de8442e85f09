"""The services file: text to Config or Problems. Opens no file and asks the machine only through an interface."""
