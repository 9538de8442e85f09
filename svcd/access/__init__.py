"""Access control of services: address lists, times of day, load, limits and rates. Pure: the clock is an argument."""
