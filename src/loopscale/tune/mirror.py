"""Show finished trials in an Optuna storage as well, so that optuna-dashboard draws them; nothing is read from there."""

from __future__ import annotations

from loopscale.errors import UserError, require
from loopscale.records import Trial
from loopscale.tune.settings import TuneSettings, bounds, to_point


class Mirror:
    """The trials of one tuning in the database at `url`, such as sqlite:///trials.db or postgresql://user@host/name.

    Raises `UserError` when it cannot be reached, or is lost, and `MissingExtraError` without optuna.
    """

    def __init__(self, url: str, settings: TuneSettings) -> None:
        self._optuna = optuna = require("optuna", "sweep")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        scheme, _, rest = url.partition("://")
        self._shown = f"{scheme}://{rest.rpartition('@')[2]}"  # without user and password
        self._ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in bounds(settings).items()}
        if not rest:
            raise UserError(f"--storage {url!r} is no address of a database: such as sqlite:///trials.db")
        driver = "postgresql+psycopg" if scheme in ("postgresql", "postgres") else scheme
        try:
            storage = optuna.storages.RDBStorage(f"{driver}://{rest}", engine_kwargs={"pool_pre_ping": True})
            self._study = optuna.create_study(storage=storage, study_name=settings.name, load_if_exists=True)
            self._held = {trial.user_attrs.get("key") for trial in self._study.get_trials(deepcopy=False)}
        except ImportError:
            raise UserError(
                f"the storage {self._shown} needs a driver: for PostgreSQL, pip install 'loopscale[postgres]'"
            ) from None
        except Exception as cause:  # of SQLAlchemy, of its driver or of Optuna: many kinds, one fix
            raise self._away("cannot reach", cause) from None

    def add(self, trial: Trial) -> None:
        """Show a finished trial, once."""
        if trial.key in self._held:
            return
        self._held.add(trial.key)
        states = self._optuna.trial.TrialState
        state = states.PRUNED if trial.stopped else states.FAIL if trial.loss is None else states.COMPLETE
        point = to_point(trial.cell.values)
        shown = self._optuna.trial.create_trial(
            state=state,
            value=trial.loss,
            params={name: min(max(point[name], ends.low), ends.high) for name, ends in self._ranges.items()},
            distributions=self._ranges,
            user_attrs={"key": trial.key, "seed": trial.cell.seed, "explored": trial.cell.explored},
        )
        try:
            self._study.add_trial(shown)
        except Exception as cause:
            raise self._away("lost", cause) from None

    def _away(self, what: str, cause: BaseException) -> UserError:
        said = str(getattr(cause, "orig", None) or cause.__cause__ or cause).strip()
        why = said.splitlines()[0][:160] if said else type(cause).__name__
        return UserError(
            f"{what} the storage {self._shown} ({why}): start its server or leave --storage out, trials are kept"
        )
