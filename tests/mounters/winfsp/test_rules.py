"""The rules of a read-only volume under WinFsp, and the tests that hold the adapter to each.

Sources: "WinFsp API", https://winfsp.dev/apiref/; the code of winfspy 0.8.4; threads of both projects. Most
of them were learnt by others the hard way. What no stand-in shows (the driver's cache, Explorer, timing) is
for the smoke script on a real Windows.
"""

import importlib
from types import ModuleType

import pytest

RULES = {
    "a driver that is not there is a clear error": "life.without_the_driver",
    "so is one that goes before the volume is made": "life.the_driver_goes_before_the_volume_is_made",
    "winfspy and WinFsp are loaded late, with what to install": "life.without_winfspy_or_winfsp",
    "a start that fails leaves no volume behind": "life.a_letter_taken_at_the_last_moment",
    "the root is asked for at the start": "life.a_root_that_cannot_be_read",
    "the first question may be aborted": "life.a_volume_that_does_not_answer_at_once",
    "no close comes for what is open at the end": "life.what_is_open_at_the_end_is_released",
    "the end waits for callbacks, then releases": "life.an_end_while_reads_run",
    "the driver may end the mount": "life.an_end_that_the_driver_makes",
    "a process has several volumes": "life.two_volumes_of_one_process",
    "letters are stacked: preflight first": "life.a_letter_in_use",
    "letters of the mount manager": "life.a_letter_of_the_whole_machine",
    "a directory must not exist, and goes": "life.a_directory life.a_directory_that_cannot_be_made",
    "network prefixes: one backslash, two parts, 95 units": "life.a_network_drive "
    "life.a_network_name_that_is_none life.a_network_drive_is_no_directory",
    "volume parameters": "life.parameters life.flags life.a_serial_number_of_its_own",
    "a label of 32 units": "life.the_label life.a_label_that_cannot_be_encoded",
    "sizes of the volume": "life.a_tree_without_a_size",
    "a descriptor may need a second question": "rights.a_descriptor_that_needs_a_second_question",
    "descriptors are never freed memory": "rights.the_descriptor",
    "information never fails behind an open": "opening.attributes_that_change_between_two_questions",
    "an open that fails leaves no context": "opening.a_node_that_cannot_be_read",
    "close never raises": "opening.a_close_that_fails",
    "FILETIME, allocation, index": "opening.information opening.times_outside_of_what_windows_counts "
    "opening.numbers_of_files_are_never_0_and_never_the_same",
    "the same everywhere": "opening.one_file_is_said_to_be_the_same_everywhere",
    "attributes": "opening.hidden_and_system_files opening.attributes_that_no_file_gets",
    "end of file": "reading.the_end_of_a_file",
    "never more bytes than asked for, never fewer but at the end": "reading.contents reading.reads_at_random "
    "reading.a_tree_that_gives_another_number_of_bytes",
    "damage is a status, and breaks nothing else": "reading.damage reading.faults_of_a_tree "
    "reading.a_file_that_cannot_be_opened_for_reading opening.a_directory_that_cannot_be_read",
    "errors come before a listing's first entry": "opening.a_damaged_directory_of_attributes "
    "opening.the_directory_above_is_damaged opening.a_size_that_cannot_be",
    "a directory's entry is not believed": "opening.what_is_found_at_another_place",
    "no reparse points": "opening.a_reparse_point_that_is_none opening.links "
    "opening.a_link_to_what_cannot_be_read",
    "nothing to read in a socket": "opening.what_is_neither_file_nor_directory",
    "name not found, path not found": "opening.names_that_are_not_there",
    "not a directory, is a directory": "opening.a_file_is_not_listed_and_a_directory_not_read "
    "opening.the_kind_asked_for_is_checked_by_the_adapter_too",
    "stored names come back": "opening.case_does_not_matter_and_stored_names_come_back "
    "opening.a_name_as_long_as_can_be opening.a_path_longer_than_the_room_for_its_name",
    "markers: strictly behind, one order, unknown names": "listing.markers "
    "listing.markers_are_of_a_handle_that_did_not_begin listing.a_directory_that_changes_its_mind",
    "pages are filled, and not more is made": "listing.fifty_thousand_entries listing.pages_of_any_size "
    "listing.a_listing_again_and_in_parts listing.two_handles_list_at_once listing.a_handle_lists_twice",
    "dots first, but in the root": "listing.dots listing.dots_as_markers listing.an_empty_directory",
    "patterns are the driver's": "listing.what_a_program_asks_for_by_pattern",
    "names that can't be opened are mapped": "opening.names_that_windows_has_not opening.names_of_devices "
    "opening.every_unit_that_a_name_can_hold",
    "names of 255 units": "opening.names_longer_than_windows_has",
    "folded as the driver folds, and unique": "opening.names_that_are_one_to_windows",
    "only the mounting user, the system and administrators": "rights.the_descriptor "
    "rights.the_mounting_user_the_system_and_administrators_read rights.the_descriptor_for_everyone",
    "owners change nothing": "rights.all_the_rights_that_one_has_are_to_read "
    "opening.rights_that_are_all_that_one_has",
    "original descriptors on request": "rights.original_descriptors "
    "rights.original_descriptors_are_only_shown_on_request",
    "callbacks run side by side": "reading.eight_readers reading.callbacks_are_answered_side_by_side "
    "reading.what_is_slow_stops_nothing_else opening.files_are_opened_by_many_at_once",
    "open, then close, and no more": "opening.how_a_file_is_opened",
    "the way is checked for some callers": "opening.directories_on_the_way_where_they_are_checked",
    "negative answers are cheap": "opening.names_that_are_not_there_cost_nothing "
    "life.mounting_reads_no_directory",
    "one name is found without a listing": "opening.a_name_is_found_without_a_listing",
    "what is open is cheap": "opening.what_is_open_holds_no_reader opening.two_handles_of_one_file "
    "reading.small_reads_open_a_file_once",
    "create is denied": "rights.creating rights.opening_what_is_there_or_else_creating_it",
    "writers are denied before they come": "rights.writers_are_denied_before_they_reach_the_adapter",
    "and refused if they come": "rights.openings_for_writing_from_within_the_kernel "
    "rights.openings_that_replace rights.openings_that_delete rights.changes rights.flushing_changes_nothing",
}
FILES = ("life", "opening", "reading", "listing", "rights")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"tests.mounters.winfsp.test_{name}")


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_has_its_tests(rule: str) -> None:
    for name in RULES[rule].split():
        file, _, test = name.partition(".")
        assert callable(getattr(module(file), f"test_{test}", None)), name


def test_hardly_a_test_without_a_rule() -> None:
    """What is not in the table stands beside it for a reason of its own."""
    named = {name for names in RULES.values() for name in names.split()}
    there = {
        f"{file}.{test[5:]}" for file in FILES for test in vars(module(file)) if test.startswith("test_")
    }
    assert there - named == {
        "rights.a_read_only_file_is_no_reason_to_fail",
        "rights.handles_are_what_they_were_granted",
    }
