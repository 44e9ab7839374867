"""Stages: functions that read an encoder from disk, train, and write what they made to their folder."""
