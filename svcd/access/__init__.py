"""Access control of services: address lists, hours, load, limits and rates. Pure: the clock is an argument."""
