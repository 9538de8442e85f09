"""Who is taken in: access, hours, load, limits and rates. It knows no socket and no clock: time is an argument."""
