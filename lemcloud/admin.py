"""The project's admin: the dashboard as its first page, and users and groups in its looks."""

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

admin.site.index_template = "relay/admin/index.html"
admin.site.index_title = "Dashboard"
admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class LemUserAdmin(UserAdmin, ModelAdmin):  # type: ignore[misc,type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class LemGroupAdmin(GroupAdmin, ModelAdmin):  # type: ignore[misc]
    pass
