"""cutover takes the tables of a living monolithic PostgreSQL database into one database per service."""

__version__ = "0.1.0.dev0"
