"""The autoscheduler: spaces of schedules, their measurement, and the records of both."""
