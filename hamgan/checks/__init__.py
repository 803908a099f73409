"""What is checked before a paid step: machine, data set and configuration. scripts/doctor.py is the
command line.
"""
