from benchmarks.loops import WrongAnswer
from benchmarks.measured import Block, Comparison, Measured, Usage
from benchmarks.sequence import one_after_the_other


async def sound():
    arm = Measured("kvshard", processes={"client": 1}, blocks=[Block(10, 1.0)], usages=[Usage(1.0, {"client": 0.5})])
    return Comparison("gets", "gets/s", {"kvshard": arm})


async def broken():
    raise ExceptionGroup("tasks", [ExceptionGroup("more", [WrongAnswer("3 values, 1 of them absent")]), OSError("later")])


async def test_a_comparison_that_fails_is_told_and_the_others_are_measured(capsys):
    found = await one_after_the_other({"first": sound, "second": broken, "third": sound})
    assert list(found.comparisons) == ["first", "third"]
    (figure,) = found.failed()
    assert figure.name == "second: failures"
    assert figure.note == "WrongAnswer: 3 values, 1 of them absent"
    assert figure.is_met is False
    assert "WrongAnswer" in capsys.readouterr().err


async def test_a_run_without_failures_has_no_row_for_them():
    assert (await one_after_the_other({"first": sound})).failed() == []
