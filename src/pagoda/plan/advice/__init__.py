"""Advice: functions from plain data to plain data, each with its reasons."""
