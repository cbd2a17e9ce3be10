package declared

// Error is an error to which somebody knows the way out.
type Error struct {
	Err error
	Way string // what to do, for the user
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Remedy says what to do about it.
func (e *Error) Remedy() string { return e.Way }
