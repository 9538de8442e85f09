"""The tests of svcd."""
