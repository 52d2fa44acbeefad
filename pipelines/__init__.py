"""Data files, Ray jobs, servers and command lines; the only room that knows all the others."""
