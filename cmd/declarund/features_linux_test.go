package main

import "testing"

func TestListsRecursive(t *testing.T) {
	for answer, want := range map[string]bool{
		`{"mountOptions":["bind","rnodev","rnoexec","rnosuid","rro"]}`: true,
		`{"mountOptions":["bind","rnodev","rnoexec"]}`:                 false,
		`{}`:                           false,
		``:                             false,
		`No help topic for 'features'`: false,
	} {
		if listsRecursive([]byte(answer)) != want {
			t.Errorf("%s: want %t", answer, want)
		}
	}
}
