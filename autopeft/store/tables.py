"""The tables: what queries need as columns, everything else as JSON text of the domain's models.

Names carry a prefix because a PostgreSQL database may be shared with other software.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 1
"""Raised with every change to the tables; a newer database is refused."""

metadata = sa.MetaData()

schema = sa.Table("autopeft_schema", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))

runs = sa.Table(
    "autopeft_runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("budget", sa.Text, nullable=False),
)

sessions = sa.Table(
    "autopeft_sessions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey(runs.c.id), nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("process_started", sa.Double, nullable=False),
    sa.Column("opened_at", sa.Double, nullable=False),
    sa.Column("heartbeat_at", sa.Double, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("closed_at", sa.Double),
)
sa.Index(
    "autopeft_one_open_session",
    sessions.c.run_id,
    unique=True,
    sqlite_where=sessions.c.closed_at.is_(None),
    postgresql_where=sessions.c.closed_at.is_(None),
)

trials = sa.Table(
    "autopeft_trials",
    metadata,
    sa.Column("run_id", sa.ForeignKey(runs.c.id), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    sa.Column("driver_deaths", sa.Integer, nullable=False, default=0),
    sa.Column("worker", sa.Text, nullable=False, default=""),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("seconds", sa.Double, nullable=False, default=0.0),
    sa.Column("gpu_seconds", sa.Double, nullable=False, default=0.0),
    sa.Column("gpus", sa.Double, nullable=False, default=0.0),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("parameters", sa.Text, nullable=False),
    sa.Column("sampler_state", sa.Text, nullable=False),
    sa.Column("measurements", sa.Text),
    sa.Column("failure", sa.Text),
    sa.Column("test_quality", sa.Text),
    sa.UniqueConstraint("run_id", "digest", "seed", name="autopeft_one_trial_per_candidate"),
)
