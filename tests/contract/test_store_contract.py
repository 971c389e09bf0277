"""The store contract on SQLite and on a real PostgreSQL server."""

import pytest

from tests.contract.store_contract import StoreContract


class TestSqlite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/trials.db"


@pytest.mark.postgres
class TestPostgres(StoreContract):
    @pytest.fixture
    def url(self, postgres_url):
        return postgres_url
