"""One handle on every query, by name. Opens the database; holds no SQL itself."""

from __future__ import annotations

from sqlalchemy import Engine

from node.settings import Settings
from node.store.alerts import Alerts
from node.store.arrivals import Arrivals
from node.store.audit import Audit
from node.store.audit_queue import AUDITED, AuditQueue
from node.store.canaries import Canaries
from node.store.commitments import Commitments
from node.store.console import Console
from node.store.decisions import Decisions
from node.store.deliveries import Deliveries
from node.store.drifts import Drifts
from node.store.early import Early
from node.store.engine import migrate, open_engine
from node.store.gaps import Gaps
from node.store.held import HeldFiles
from node.store.incidents import Incidents
from node.store.jobs import Jobs
from node.store.keeping import Keeping
from node.store.leaders import Leaders
from node.store.orders import Orders
from node.store.pairs import Pairs
from node.store.pauses import Pauses
from node.store.people import People
from node.store.priors import Priors
from node.store.promotions import Promotions
from node.store.quality import Quality
from node.store.queue import Queue
from node.store.reviews import Reviews
from node.store.routes import Routes
from node.store.shadows import Shadows
from node.store.subscriptions import Subscriptions
from node.store.views import Views
from node.store.workitems import Workitems
from node.store.worklist import Worklist


class Records:
    """What came in, what is decided on it, what is analysed, what goes out; and lists of it all."""

    def __init__(self, engine: Engine, audited: bool = False) -> None:
        """`audited`: an audit repository wants to hear of what happens."""
        engine = engine.execution_options(**{AUDITED: audited})
        self.engine = engine
        self.audit_queue = AuditQueue(engine)
        self.arrivals = Arrivals(engine)
        self.decisions = Decisions(engine)
        self.early = Early(engine)
        self.jobs = Jobs(engine)
        self.routes = Routes(engine)
        self.queue = Queue(engine)
        self.orders = Orders(engine)
        self.gaps = Gaps(engine)
        self.deliveries = Deliveries(engine)
        self.alerts = Alerts(engine)
        self.commitments = Commitments(engine)
        self.incidents = Incidents(engine)
        self.keeping = Keeping(engine)
        self.held = HeldFiles(engine)
        self.leaders = Leaders(engine)
        self.priors = Priors(engine)
        self.views = Views(engine)
        self.people = People(engine)
        self.audit = Audit(engine)
        self.reviews = Reviews(engine)
        self.pauses = Pauses(engine)
        self.worklist = Worklist(engine)
        self.workitems = Workitems(engine)
        self.subscriptions = Subscriptions(engine)
        self.console = Console(engine)
        self.quality = Quality(engine)
        self.drifts = Drifts(engine)
        self.canaries = Canaries(engine)
        self.shadows = Shadows(engine)
        self.pairs = Pairs(engine)
        self.promotions = Promotions(engine)

    def close(self) -> None:
        self.arrivals.close()
        self.engine.dispose()


def open_records(settings: Settings) -> Records:
    """The records of this installation, with the schema brought up to date."""
    engine = open_engine(settings.database_url)
    migrate(engine)
    return Records(engine, audited=bool(settings.audit.host))
