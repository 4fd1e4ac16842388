"""One picture looked at once, and any number of expressions about it: what a caller holds.

Contract  Arguments are checked at the call; answering is answering.py's, which keeps one call at a time.
Elsewhere looking: looking.py; what may be asked: asking.py; answering: answering.py; on disk: kept_scene.py.
Source    docs/sources.md#scene
"""

import os
from collections.abc import Iterable, Iterator

from rexthinker_edge.runtime.answering import Answerer
from rexthinker_edge.runtime.asking import Asked, agree, ask
from rexthinker_edge.runtime.deadline import monotonic_ms
from rexthinker_edge.runtime.errors import TextError
from rexthinker_edge.runtime.generate import Limits
from rexthinker_edge.runtime.image import Picture
from rexthinker_edge.runtime.kept_scene import save_scene
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.manner import Manner
from rexthinker_edge.runtime.prefix_tree import PrefixTree
from rexthinker_edge.runtime.prompt_path import PromptPath
from rexthinker_edge.runtime.result import Candidate, Event, Result, ResultEvent
from rexthinker_edge.runtime.sight import Sight
from rexthinker_edge.runtime.tokens import check_text


class Scene:
    """A picture, a category and its candidates, ready for expressions. Made by `Thinker.look`."""

    def __init__(self, language: Language, sight: Sight, tree: PrefixTree, prompt: PromptPath | None) -> None:
        """`prompt` is None when there are no candidates: the model is never asked then."""
        self._language, self._sight = language, sight
        self._tree, self._prompt = tree, prompt
        self._answerer = Answerer(language, sight, tree, prompt)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What was proposed, not yet judged."""
        return self._sight.candidates

    @property
    def category(self) -> str:
        """What was looked for."""
        return self._sight.category

    @property
    def picture(self) -> Picture:
        """The picture, upright."""
        return self._sight.picture

    def refer(
        self, expression: str, max_new_tokens: int | None = None, deadline_ms: float | None = None, *,
        drafting: bool | None = None, temperature: float = 0.0, seed: int | None = None,
        max_risk: float | None = None,
    ) -> Result:  # fmt: skip
        """Find what an expression means among the candidates.

        Args:
            expression: such as "the second ball from the left".
            max_new_tokens: limit of generated tokens; the manifest's when None.
            deadline_ms: milliseconds from now after which it ends with status TIMEOUT; none when None.
            drafting: foresee tokens and verify several in one pass, which changes the time and no token;
                None: as `load` was told.
            temperature: 0 gives the likeliest answer; above, tokens are drawn from softmax(logits / it).
            seed: of the drawing.
            max_risk: of the answers given, the share that may be wrong, such as 0.05: an answer less sure
                than the bundle's calibration asks for is withheld, its status UNGROUNDED and `abstention`
                telling what it was. What that promises, and when, is in docs/risk.md.

        Raises:
            TextError: the expression is empty, too long or has control characters.
            OptionError: a limit is not positive, prompt and answer together exceed the bundle's length,
                temperature and seed cannot be honoured, or the bundle cannot hold `max_risk`.
            SceneBusyError: this scene is answering already.
        """
        manner = Manner(drafting, temperature, seed)
        asked, limits = self._ask(expression, max_new_tokens, deadline_ms, max_risk, manner)
        *_, last = self._answerer.events(asked, limits)
        assert isinstance(last, ResultEvent)
        return last.result

    def refer_many(
        self, expressions: Iterable[str], max_new_tokens: int | None = None, deadline_ms: float | None = None,
        *, max_risk: float | None = None,
    ) -> list[Result]:  # fmt: skip
        """One result per expression, in order; every expression is checked before the first is answered.

        They are decoded together, `TOGETHER` at a time, where the bundle's decoder allows it (bundles of
        earlier versions do not) and where that is quicker here than one after the other, which is measured;
        the results are those of asking one by one, but for the last digits of confidences, which are read
        from rows that round otherwise.

        Args:
            deadline_ms: milliseconds from now after which all of it ends; what has no answer then has status
                TIMEOUT.
            max_risk: as in `refer`.

        Raises:
            TextError, OptionError, SceneBusyError: as `refer`.
        """
        started = monotonic_ms()
        if isinstance(expressions, str | bytes) or not isinstance(expressions, Iterable):
            raise TextError(
                f"expressions: a {type(expressions).__name__}, a list of texts is needed. Put one text into "
                "a list, or use refer."
            )
        checked = [check_text("expression", expression) for expression in expressions]
        terms = agree(self._language, max_new_tokens, deadline_ms, max_risk, Manner())
        asked = [ask(self._language, self._prompt, expression, terms) for expression in checked]
        return self._answerer.together(asked, terms.limits(self._language, started))

    def stream(
        self, expression: str, max_new_tokens: int | None = None, deadline_ms: float | None = None, *,
        drafting: bool | None = None, temperature: float = 0.0, seed: int | None = None,
        max_risk: float | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        """As `refer`, told as it happens: the candidates, pieces of text, the decision, the result.

        With `max_risk` no decision is told before the result: it might have to be taken back.
        Arguments are checked at the call; the scene stays busy until the iterator ends or is closed.
        """
        manner = Manner(drafting, temperature, seed)
        asked, limits = self._ask(expression, max_new_tokens, deadline_ms, max_risk, manner)
        return self._answerer.events(asked, limits)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scene to a file that `Thinker.restore` of the same bundle reads; all of it or nothing.

        Raises:
            SceneError: it cannot be written there.
            SceneBusyError: this scene is answering.
        """
        with self._answerer.alone():
            save_scene(self._language, self._sight, self._tree, self._prompt, path)

    def _ask(
        self, expression: str, max_new_tokens: int | None, deadline_ms: float | None,
        max_risk: float | None, manner: Manner,
    ) -> tuple[Asked, Limits]:  # fmt: skip
        """What is asked, checked, and when it has to end: the deadline counts from here."""
        started = monotonic_ms()
        expression = check_text("expression", expression)
        terms = agree(self._language, max_new_tokens, deadline_ms, max_risk, manner)
        asked = ask(self._language, self._prompt, expression, terms)
        return asked, terms.limits(self._language, started)
