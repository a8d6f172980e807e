"""Rule sets: their overrides by name, what they refuse, and what an explainer says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from test_layers import HIGH, LOW, NETS, batch, explained

import onnx_clrp
from onnx_clrp import Explainer, UsageError
from onnx_clrp.check import check
from onnx_clrp.compiler import Plan, write
from onnx_clrp.composites import RULE_SETS, Composite, composite_of, overridden, parse_rule
from onnx_clrp.inspection import Inspection, inspect
from onnx_clrp.methods import CONTRASTS, METHODS, Method, method_of
from onnx_clrp.model import PREFIX, metadata
from onnx_clrp.program import Program, read_program
from onnx_clrp.redistribute import Redistribution, negated, zplus
from onnx_clrp.tape import Tape, Tensor

Options = dict[str, Any]

RANGE: Options = {"input_range": (LOW, HIGH)}
OF_LRP = tuple(name for name, method in METHODS.items() if method.of_relevance)
OTHERS = tuple(name for name in METHODS if name not in OF_LRP)


def refusal(**options: Any) -> str:
    """What is said of options that do not go together: a line."""
    with pytest.raises(UsageError) as caught:
        onnx_clrp.convert(NETS["residual"]().model(), **RANGE, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


# -- rules by their texts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("zplus", "z⁺"),
        ("zbeta", "z^β"),
        ("epsilon", "ε = 1e-06"),
        ("epsilon()", "ε = 1e-06"),
        (" epsilon ( 0.01 ) ", "ε = 0.01"),
        ("epsilon(0)", "ε = 0"),
        ("gamma", "γ = 0.25"),
        ("gamma(.5)", "γ = 0.5"),
        ("gamma(1e3)", "γ = 1000"),
        ("alpha_beta", "α = 2, β = 1"),
        ("alpha_beta(1, 0)", "α = 1, β = 0"),
        ("alpha_beta(1)", "α = 1, β = 0"),
        ("alpha_beta(1.1,0.1)", "α = 1.1, β = 0.1"),
        ("alpha_beta(2.3,1.3)", "α = 2.3, β = 1.3"),
        ("wsquare", "w²"),
        ("flat", "flat"),
    ],
)
def test_a_rule_is_made_of_its_text(text: str, name: str) -> None:
    assert parse_rule(text).name == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is no rule: it is written as epsilon(1e-6) or zplus"),
        ("epsilon(", "is no rule"),
        ("gamma(0.25))", "is no rule"),
        ("epsilon 1", "is no rule"),
        ("epsilon(1)(2)", "is no rule"),
        ("nope", "no rule is called 'nope'; there are zplus, zbeta, epsilon"),
        ("lrp(2)", "no rule is called 'lrp'"),
        ("epsilon(a)", "a rule takes numbers in its brackets"),
        ("epsilon(,)", "a rule takes numbers in its brackets"),
        ("epsilon(1,2)", "epsilon takes at most 1 number"),
        ("zplus(1)", "zplus takes at most 0 numbers"),
        ("alpha_beta(1,0,0)", "alpha_beta takes at most 2 numbers"),
        ("epsilon(-1)", "none below zero"),
        ("epsilon(nan)", "none below zero"),
        ("gamma(inf)", "none below zero"),
        ("alpha_beta(2,2)", "alpha - beta must be 1"),
        ("alpha_beta(3)", "alpha - beta must be 1"),
    ],
)
def test_a_text_that_is_no_rule_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    assert reason in str(caught.value)
    assert reason in refusal(method="lrp", rules_for={"conv": text})


# -- overrides ---------------------------------------------------------------------------------

MAPS = ("conv1", "conv2", "conv3", "short", "conv4", "logits")
USUAL = dict.fromkeys(MAPS, "z⁺") | {"conv1": "z^β"}


def by_map(found: Inspection) -> dict[str, str]:
    """The rule of every linear map by its name."""
    return {row.node.removeprefix("net/"): row.rule for row in found.nodes if row.linear}


def chosen(overrides: Any, method: str = "lrp", **options: Any) -> dict[str, str]:
    model = NETS["residual"]().model()
    return by_map(inspect(model, **RANGE, method=method, rules_for=overrides, **options))


def program_of(name: str = "residual", **options: Any) -> Program:
    return read_program(NETS[name]().model(), **RANGE, **options)


def flat(*names: str) -> dict[str, str]:
    """The usual rules, and flat for some maps."""
    return USUAL | dict.fromkeys(names, "flat")


CONVS = ("conv1", "conv2", "conv3", "short", "conv4")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("net/conv2", ["conv2"]),
        ("NET/Conv2", ["conv2"]),
        ("*/conv*", ["conv1", "conv2", "conv3", "conv4"]),
        ("net/conv?", ["conv1", "conv2", "conv3", "conv4"]),
        ("net/conv[12]", ["conv1", "conv2"]),
        ("*", MAPS),
        ("Conv", CONVS),
        ("conv*", CONVS),
        ("GEMM", ["logits"]),
        ("#1", ["conv1"]),
        ("#6", ["logits"]),
        ("#-1", ["logits"]),
        ("#-6", ["conv1"]),
        ("#2-3", ["conv2", "conv3"]),
        ("#4-4", ["short"]),
        ("#2--2", ["conv2", "conv3", "short", "conv4"]),
        ("#-2--1", ["conv4", "logits"]),
    ],
)
def test_a_pattern_is_a_name_an_operator_or_a_place(pattern: str, names: Sequence[str]) -> None:
    program, usual = program_of(), RULE_SETS["default"]
    for overrides in ({pattern: "flat"}, [f"{pattern}=flat"], [f" {pattern} = flat "]):
        made = overridden(usual, overrides, program.steps)
        assert [(name, rule.name) for name, rule in made.named] == [(n, "flat") for n in names]
    assert chosen({pattern: "flat"}) == flat(*names)


NOWHERE = ["relu", "net/relu1", "conv9", "#0", "#7", "#-7", "#3-2", "#", ""]


@pytest.mark.parametrize("pattern", NOWHERE)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    said = refusal(method="lrp", rules_for={pattern: "flat"})
    assert f"no linear map is called {pattern!r}; there are 6: net/conv1, net/conv2" in said
    assert "#1 … #6" in said


@pytest.mark.parametrize("text", ["conv", "=flat", "flat", "conv flat"])
def test_an_override_is_written_with_an_equals_sign(text: str) -> None:
    said = refusal(method="lrp", rules_for=[text])
    assert "is no override: write PATTERN=RULE, as conv*=gamma(0.25)" in said


def test_of_several_overrides_the_last_that_matches_holds() -> None:
    found = chosen(["conv=flat", "#2=gamma(0.5)", "#3-4=wsquare", "*conv3=epsilon(0.1)"])
    wanted = flat("conv1", "conv4")
    wanted |= {"conv2": "γ = 0.5", "conv3": "ε = 0.1", "short": "w²"}
    assert found == wanted
    found = chosen({"net/short": "flat", "#4": "wsquare"})
    assert found == USUAL | {"short": "w²"}
    found = chosen({"#4": "wsquare", "net/short": "flat"})
    assert found == flat("short")


def test_a_single_text_is_an_override_and_no_list_of_letters() -> None:
    assert chosen("#1=flat") == flat("conv1")


def test_overrides_may_be_given_once() -> None:
    options: Options = {"method": "lrp", "rules_for": (text for text in ["#1=flat", "#2=gamma"])}
    explainer = onnx_clrp.convert(NETS["residual"]().model(), **RANGE, **options)
    assert json.loads(metadata(explainer)[PREFIX + "rules_for"]) == ["#1=flat", "#2=gamma"]


def test_no_overrides_are_none() -> None:
    options: Options = {"rules_for": None, "at": None}
    onnx_clrp.convert(NETS["residual"]().model(), **RANGE, **options)


def test_overrides_change_a_rule_set_where_they_say() -> None:
    found = chosen({"#-1": "zplus"}, rules="epsilon_gamma_box")
    wanted = dict.fromkeys(MAPS, "γ = 0.25") | {"conv1": "z^β", "logits": "z⁺"}
    assert found == wanted
    plain = explained("residual", [0, 2], method="lrp")
    same = explained("residual", [0, 2], method="lrp", rules_for={"#1": "zbeta", "#2--1": "zplus"})
    np.testing.assert_allclose(plain.relevance, same.relevance, rtol=1e-5, atol=1e-7)


def test_an_override_is_what_the_map_is_made_with() -> None:
    flattened = explained("convolutional", 1, method="lrp", rules_for={"#1": "flat"}, at=["conv1"])
    arrived = flattened.at["conv1"][:, 0].sum(1)
    # With kernels of 3x3 a pixel inside gets a 27th of what arrives around it, in each channel.
    inside = sum(arrived[:, i : i + 4, j : j + 4] for i in (2, 1, 3) for j in (2, 1, 3)) / 27
    found = flattened.relevance[:, 0, :, 2:6, 2:6]
    np.testing.assert_allclose(found, np.stack([inside] * 3, 1), rtol=1e-4, atol=1e-7)


def test_places_are_counted_along_the_way_to_a_neuron() -> None:
    model = NETS["residual"]().model()
    options: Options = {"layer": "relu3", "method": "lrp"}
    found = by_map(inspect(model, **RANGE, **options, rules_for={"#-1": "flat"}))
    assert found == {"conv1": "z^β", "conv2": "z⁺", "conv3": "z⁺", "short": "flat"}
    assert "there are 4" in refusal(**options, rules_for={"#5": "flat"})


def test_overrides_leave_the_rule_set_itself_alone() -> None:
    program, before = program_of(), RULE_SETS["default"]
    made = overridden(before, {"#1": "flat"}, program.steps)
    assert before.named == ()
    assert [name for name, _ in made.named] == ["conv1"]
    again = overridden(made, {"#1": "gamma", "#2": "flat"}, program.steps)
    assert [(name, rule.name) for name, rule in again.named] == [
        ("conv1", "γ = 0.25"),
        ("conv2", "flat"),
    ]
    wrapped = again.over_maps(negated)
    assert [rule.name for _, rule in wrapped.named] == ["γ = 0.25", "flat"]


# -- pools -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lrp", "clrp2"])
def test_pools_take_another_rule_by_themselves(method: str) -> None:
    def found(**options: Any) -> NDArray[np.float32]:
        return explained("plain", [0, 2], method=method, **options).relevance

    sets = {rules: found(rules=rules) for rules in ("default", "paper", "authors")}
    same = np.testing.assert_array_equal
    same(found(avg_pool="even"), sets["paper"])
    same(found(rules="paper", avg_pool="proportional"), sets["default"])
    same(found(avg_pool="even", max_pool="split"), sets["authors"])
    same(found(rules="authors", max_pool="first"), sets["paper"])
    assert not np.allclose(sets["default"], sets["paper"])


def test_pools_of_a_preset_take_another_rule_too() -> None:
    one = explained("plain", 1, method="lrp", rules="epsilon", avg_pool="even")
    other = explained("plain", 1, method="lrp", rules="epsilon")
    assert not np.allclose(one.relevance, other.relevance)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rules": "nope"}, "no rule set is called 'nope'; there are default, paper, authors"),
        ({"rules": ""}, "no rule set is called ''"),
        ({"rules": "Paper"}, "no rule set is called 'Paper'"),
        ({"avg_pool": "nope"}, "no rule for average pools is called 'nope'; there are even"),
        ({"max_pool": "even"}, "no rule for max pools is called 'even'; there are first, split"),
        ({"method": "nope"}, "no method is called 'nope'; there are lrp, clrp1, clrp2"),
    ],
)
def test_what_is_not_there_comes_with_what_is(options: Options, reason: str) -> None:
    assert reason in refusal(**options)


def test_composites_are_found_by_name() -> None:
    assert composite_of() == RULE_SETS["default"]
    assert composite_of("paper", avg_pool="proportional") == RULE_SETS["default"]
    assert composite_of("default", avg_pool="even", max_pool="split") == RULE_SETS["authors"]
    assert composite_of("authors").splits_ties
    assert not composite_of("paper").splits_ties


# -- who takes rules, and who a contrast ----------------------------------------------------------

RULES: Mapping[str, Any] = {
    "rules": "paper",
    "rules_for": {"conv": "flat"},
    "avg_pool": "even",
    "max_pool": "split",
}


@pytest.mark.parametrize("option", RULES)
@pytest.mark.parametrize("method", OTHERS)
def test_rules_are_those_of_lrp(method: str, option: str) -> None:
    said = refusal(**{"method": method, option: RULES[option]})
    assert said == f"{method} takes no rules: they are those of LRP and its contrasts"


@pytest.mark.parametrize("option", RULES)
@pytest.mark.parametrize("method", OF_LRP)
def test_all_of_lrps_family_take_rules(method: str, option: str) -> None:
    options: Options = {"method": method, option: RULES[option]}
    onnx_clrp.convert(NETS["plain"]().model(), **RANGE, **options)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        *((name, "has a contrast of its own") for name, m in METHODS.items() if m.dual is not None),
        *((name, "takes no contrast") for name in ("grad_cam", "guided_grad_cam", "random")),
    ],
)
def test_a_contrast_is_refused_where_there_is_one_or_none(
    method: str, reason: str, contrast: str
) -> None:
    said = refusal(method=method, contrast=contrast)
    assert said.startswith(f"{method} {reason}")


def test_contrasts_and_differences_are_known_by_name() -> None:
    assert refusal(method="lrp", contrast="nope").startswith("no contrast is called 'nope'")
    said = refusal(method="lrp", contrast="negated", difference="nope")
    assert said == "a difference is plain or normalised, not 'nope'"


@pytest.mark.parametrize("difference", ["plain", "normalised"])
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.dual is None])
def test_without_a_contrast_there_is_no_difference(method: str, difference: str) -> None:
    said = refusal(method=method, difference=difference)
    assert said == f"{method} has no contrast, and no difference to take"


def test_contrasts_that_have_a_name_are_the_same_map() -> None:
    for name, contrast in (("clrp1", "complement"), ("clrp2", "negated")):
        by_name = explained("residual", [0, 2], method=name)
        put_together = explained("residual", [0, 2], method="lrp", contrast=contrast)
        np.testing.assert_array_equal(by_name.relevance, put_together.relevance)
        assert (by_name.method, put_together.method) == (name, "lrp")


# -- what is not linear in the relevance ----------------------------------------------------------


def _squared(t: Tape, f: Any, r: Tensor) -> Tensor:
    return zplus(t, f, t.Mul(r, r))


SQUARED = Redistribution("squared", _squared, linear=False)


def not_linear() -> dict[str, Composite]:
    """Composites with a rule somewhere that is not linear in the relevance."""
    usual = RULE_SETS["default"]
    return {
        "first": replace(usual, first=SQUARED),
        "linear": replace(usual, linear=SQUARED),
        "dense": replace(usual, dense=SQUARED),
        "mean": replace(usual, mean=SQUARED),
        "named": replace(usual, named=(("conv2", SQUARED),)),
    }


def run_of(method: Method, composite: Composite, **options: Any) -> Any:
    """What an explainer of a composite of one's own gives."""
    program = program_of("plain")
    written = write(program, Plan(method, composite), [1], **options)
    onnx.checker.check_model(written)
    for key, value in (("method", method.name), ("classes", "4"), ("notes", "[]")):
        written.metadata_props.add(key=PREFIX + key, value=value)
    bounds = json.dumps({"low": [LOW], "high": [HIGH], "axis": 1})
    written.metadata_props.add(key=PREFIX + "input_range", value=bounds)
    return Explainer(written, device="cpu").explain(batch())


@pytest.mark.parametrize("place", not_linear())
def test_what_is_not_linear_has_no_plain_contrast(place: str) -> None:
    composite = not_linear()[place]
    assert not composite.linear_in_relevance
    for name in ("clrp1", "clrp2", "sglrp"):
        method = method_of(name, 4)
        with pytest.raises(UsageError, match="no contrast: a rule is not linear in the relevance"):
            write(program_of("plain"), Plan(method, composite), [1])


@pytest.mark.parametrize("place", ["linear", "named"])
def test_what_is_not_linear_has_a_normalised_contrast_of_two_passes(place: str) -> None:
    composite = not_linear()[place]
    method = method_of("lrp", 4, "complement", "normalised")
    found = run_of(method, composite, parts=True, signed=True)
    one, other = (m / np.abs(m).sum((2, 3, 4), keepdims=True) for m in (found.concept, found.dual))
    np.testing.assert_allclose(found.relevance, one - other, rtol=1e-3, atol=1e-7)
    assert np.abs(found.relevance).max() > 1e-4
    alone = run_of(METHODS["lrp"], composite)
    np.testing.assert_array_equal(alone.relevance, found.concept)


def test_rule_sets_are_linear_in_the_relevance() -> None:
    for composite in RULE_SETS.values():
        assert composite.linear_in_relevance
        assert not composite.gradient
    linear = {name: m.composite.linear_in_relevance for name, m in METHODS.items() if m.composite}
    rectified = ("deconvnet", "guided_backprop", "guided_grad_cam")
    assert {name for name, is_linear in linear.items() if not is_linear} == set(rectified)


# -- a classifier layer that does not see its weights negated --------------------------------------

NOTE = (
    "the classifier layer takes z⁺ for the contrast: to its own rule negated weights are the same"
)
BLIND = ("epsilon", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1")


def notes_of(**options: Any) -> list[str]:
    made = onnx_clrp.convert(NETS["residual"]().model(), **RANGE, **options)
    notes: list[str] = json.loads(metadata(made)[PREFIX + "notes"])
    return notes


@pytest.mark.parametrize("rules", RULE_SETS)
def test_a_classifier_that_is_blind_to_its_opposite_is_noted(rules: str) -> None:
    assert notes_of(method="clrp2", rules=rules) == [NOTE] * (rules in BLIND)
    assert notes_of(method="clrp1", rules=rules) == []


@pytest.mark.parametrize("rule", ["epsilon(0.1)", "wsquare", "flat"])
def test_an_override_may_be_blind_too(rule: str) -> None:
    assert notes_of(method="clrp2", rules_for={"#-1": rule}) == [NOTE]
    assert notes_of(method="clrp2", rules_for={"#1": rule}) == []
    assert notes_of(method="clrp2", rules="epsilon", rules_for={"#-1": "alpha_beta"}) == []
    assert notes_of(method="clrp2", layer="relu3", rules_for={"net/short": rule}) == [NOTE]


@pytest.mark.parametrize("rules", BLIND)
def test_in_place_of_a_blind_rule_the_classifier_takes_zplus(rules: str) -> None:
    options: Options = {"method": "clrp2", "rules": rules, "signed": True}
    found = explained("residual", [0, 2], **options)
    asked = explained("residual", [0, 2], **options, rules_for={"#-1": "zplus"})
    np.testing.assert_array_equal(found.relevance, asked.relevance)
    assert np.abs(found.relevance).max() > 1e-4
    assert chosen({}, "clrp2", rules=rules)["logits"] == "z⁺, classifier layer"


def test_gradients_have_an_opposite_whatever_the_rules() -> None:
    assert notes_of(method="gradient", contrast="negated") == []


# -- what an explainer says of itself -------------------------------------------------------------


def facts(**options: Any) -> dict[str, str]:
    made = onnx_clrp.convert(NETS["residual"]().model(), **RANGE, **options)
    return {k.removeprefix(PREFIX): v for k, v in metadata(made).items() if k.startswith(PREFIX)}


def test_the_metadata_hold_what_was_chosen() -> None:
    options: Options = {
        "method": "lrp",
        "contrast": "negated",
        "difference": "normalised",
        "signed": True,
        "rules": "paper",
        "avg_pool": "proportional",
        "max_pool": "split",
        "rules_for": {"conv*": "gamma(0.25)", "#1": "flat"},
        "at": ["relu1", "net/relu3"],
    }
    found = facts(**options)
    for key in ("method", "contrast", "difference", "rules", "avg_pool", "max_pool"):
        assert found[key] == options[key]
    assert found["signed"] == "true"
    assert json.loads(found["rules_for"]) == ["conv*=gamma(0.25)", "#1=flat"]
    assert json.loads(found["at"]) == options["at"]


def test_the_metadata_hold_nothing_that_was_not_chosen() -> None:
    found = facts()
    assert (found["method"], found["rules"], found["signed"]) == ("clrp2", "default", "false")
    absent = {"contrast", "difference", "avg_pool", "max_pool", "rules_for", "layer"}
    assert absent.isdisjoint(found)
    assert facts(method="clrp1_authors")["rules"] == "authors"
    assert facts(method="clrp1_authors", rules="paper")["rules"] == "paper"


def test_the_metadata_hold_the_layers() -> None:
    found = json.loads(facts(method="lrp", layer="net/relu3", neurons="units")["layer"])
    assert found == {"name": "relu3", "neurons": "units", "shape": [None, 6, 8, 8]}
    assert facts(method="grad_cam", cam_layer="relu1")["cam_layer"] == "relu1"


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "CLRP2"),
        ({"method": "lrp", "rules": "epsilon"}, "LRP, epsilon"),
        ({"method": "lrp", "contrast": "complement"}, "LRP, complement"),
        ({"method": "lrp", "contrast": "negated", "rules": "paper"}, "LRP, negated, paper"),
        ({"method": "gradient", "contrast": "others"}, "gradient, others"),
        ({"method": "clrp2_authors"}, "CLRP2, authors' code"),
        ({"method": "clrp2_authors", "rules": "paper"}, "CLRP2, authors' code, paper"),
        ({"method": "grad_cam"}, "Grad-CAM"),
    ],
)
def test_a_picture_is_told_what_made_it(options: Options, title: str) -> None:
    made = onnx_clrp.convert(NETS["residual"]().model(), **RANGE, **options)
    assert Explainer(made.SerializeToString(), device="cpu").title == title


# -- check and inspect ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_check_and_inspect_work_for_every_method(method: str) -> None:
    model, options = NETS["residual"]().model(), {**RANGE, "method": method}
    report = check(model, batch(1), device="cpu", **options)
    assert report.faults == []
    assert report.why_not == {}
    assert report.method == method
    assert report.distance is not None
    assert (report.contrast is not None) == (
        METHODS[method].dual is not None and METHODS[method].difference == "plain"
    )
    assert report.arrived_at_input + report.absorbed == pytest.approx(1, abs=1e-4)
    found = inspect(model, **options)
    assert (found.missing, found.refusal, found.method) == ([], None, method)
    if METHODS[method].cam or METHODS[method].noise:
        return
    assert (found.explanation or 0) > 0
    assert all(row.rule for row in found.nodes)


@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize("method", ["lrp", "clrp1"])
def test_check_and_inspect_work_for_every_rule_set(method: str, rules: str) -> None:
    model, options = NETS["plain"]().model(), {**RANGE, "method": method, "rules": rules}
    report = check(model, batch(1), device="cpu", **options)
    assert report.faults == []
    assert report.why_not == {}
    assert abs(sum(report.reasons.values()) - report.absorbed) < 1e-9
    biased = "the bias's share, and the stabiliser's" in report.reasons
    assert biased == (rules not in ("default", "paper", "authors"))
    found = inspect(model, **options)
    assert (found.missing, found.refusal, found.rules) == ([], None, rules)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lrp", "layer": "relu3"},
        {"method": "clrp2", "layer": "relu3", "neurons": "units"},
        {"method": "lrp", "rules_for": {"conv": "gamma", "#1": "wsquare", "#-1": "flat"}},
        {"method": "gradient", "contrast": "negated"},
        {"method": "deconvnet", "contrast": "complement", "difference": "plain"},
        {"method": "excitation_backprop", "contrast": "others"},
        {"method": "lrp", "at": ["relu1", "relu3"]},
    ],
    ids=str,
)
def test_check_and_inspect_take_all_options(options: Options) -> None:
    model = NETS["residual"]().model()
    report = check(model, batch(1), device="cpu", **RANGE, **options)
    assert report.faults == []
    assert report.why_not == {}
    found = inspect(model, **RANGE, **options)
    assert (found.missing, found.refusal) == ([], None)
