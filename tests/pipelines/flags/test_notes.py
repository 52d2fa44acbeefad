"""Texts of --help that lie apart from the code they describe fit it."""

import dataclasses
import shlex

import pytest
import tyro

from pipelines.conditioning.conditioning import CONDITIONINGS, FileConditioning
from pipelines.console.grouped_flags import GROUPS, flattened, grouped
from pipelines.console.smalti import commands
from pipelines.exporting.formats import FORMATS
from pipelines.flags import COMMAND_FLAGS, CONDITION_NOTES, FORMAT_NOTES


def test_every_condition_has_a_note_and_those_of_files_what_the_files_are():
    assert set(CONDITION_NOTES) == set(CONDITIONINGS)
    for name, note in CONDITION_NOTES.items():
        assert bool(note.sampling) == issubclass(CONDITIONINGS[name], FileConditioning)


def test_every_export_format_has_a_note():
    assert list(FORMAT_NOTES) == list(FORMATS)


def test_every_command_has_flags():
    assert set(COMMAND_FLAGS) == set(commands())


@pytest.mark.parametrize("name", COMMAND_FLAGS)
def test_the_example_of_a_command_has_flags_that_it_has(name):
    flags = COMMAND_FLAGS[name]
    words = shlex.split(flags.EXAMPLE)
    config = (tyro.conf.OmitArgPrefixes,)
    assert isinstance(
        flattened(flags, tyro.cli(grouped(flags, {}), args=words, config=config)), flags
    )


def test_every_name_in_the_table_of_groups_is_a_flag():
    fields = {f.name for flags in COMMAND_FLAGS.values() for f in dataclasses.fields(flags)}
    assert not {name for names in GROUPS.values() for name in names} - fields


@pytest.mark.parametrize("name", ["train_prior", "train_tokenizer"])
def test_flags_that_are_the_recipes_have_no_default_of_their_own(name):
    defaults = {field.name: field.default for field in dataclasses.fields(COMMAND_FLAGS[name])}
    assert {defaults[field] for field in COMMAND_FLAGS[name].FROM_RECIPE} == {None}
