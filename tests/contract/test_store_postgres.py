"""What a person is told where PostgreSQL does not play along."""

import pytest

from autopeft.domain.errors import UserError
from autopeft.store import open_store
from tests.contract.run_samples import complete, proposal_of, record_of

pytestmark = pytest.mark.postgres


def test_a_wrong_password_is_named_and_not_shown(postgres_url):
    wrong = postgres_url.replace("s3cret%2F%26word", "hunter2%2Fhunter2")
    with pytest.raises(UserError, match="user or the password is wrong") as error:
        open_store(wrong)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.problems[0].next_step


def test_a_database_that_is_not_there_is_named(postgres_url):
    with pytest.raises(UserError, match="createdb") as error:
        open_store(postgres_url.rsplit("/", 1)[0] + "/nowhere")
    assert "nowhere" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_the_password_may_stand_among_the_options(postgres_url):
    address = postgres_url.replace(":s3cret%2F%26word@", "@")
    with_option = f"{address}?password=s3cret%2F%26word&connect_timeout=5"
    store = open_store(with_option)
    assert store.names() == []
    assert "s3cret" not in repr(store) + repr(store._database) + repr(store._database._engine)
    store.close()


def test_other_names_of_the_scheme_work(postgres_url):
    for scheme in ("postgres", "postgresql+psycopg"):
        store = open_store(postgres_url.replace("postgresql", scheme, 1))
        assert store.names() == []
        store.close()


def test_a_server_that_went_away_is_named_and_nothing_committed_is_lost(postgres_server, postgres_url):
    store = open_store(postgres_url)
    run = store.create(record_of())
    run.open_session()
    run.add(proposal_of(0), 1)
    run.start(0, "w")
    postgres_server.stop()
    try:
        with pytest.raises(UserError, match="cannot be reached") as error:
            run.finish(0, 1, complete(), 0)
        assert "s3cret" not in str(error.value)
    finally:
        postgres_server.start()
    assert run.finish(0, 1, complete(), 0) == run.trials()[0]
    run.heartbeat()
    store.close()
